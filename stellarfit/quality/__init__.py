"""The quality page of a catalogue: one HTML file that shows what a survey's results are worth.

``stellarfit report`` writes it. Every section of the page is a file here; `stellarfit.quality.page`
puts them together.
"""

from .page import write_quality_page

__all__ = ["write_quality_page"]

"""Which optimizer: Adam, Muon or SOAP, under muP at equal FLOPs."""

"""TransformerPayne beside The Payne and The Cannon, on one grid."""

"""The page "Settings by purpose", made from what the other experiments have recorded."""

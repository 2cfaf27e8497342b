"""What a run is (its identity) and what it leaves behind (its record): one reader and one writer of its directory."""

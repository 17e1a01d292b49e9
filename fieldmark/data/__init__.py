"""folder of photos -> catalog, findings, split; file -> RGB. No torch here."""

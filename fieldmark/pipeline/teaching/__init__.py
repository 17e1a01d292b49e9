"""Labels given one by one: what to label next, a head that is solved after each answer, an honest estimate."""

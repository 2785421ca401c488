"""What a border costs: dated rules of tax and duty, duty rates, exchange rates, and the landed cost that they make."""

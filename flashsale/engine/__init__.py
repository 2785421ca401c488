"""A running engine as one thing: `flashsale up`, its parts as processes, and what it shows of itself."""

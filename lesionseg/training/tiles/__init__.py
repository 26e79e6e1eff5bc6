"""Training tiles by number: an endless stream that can begin at any step."""

"""What a run's records say, as one page for people; the only room that draws."""

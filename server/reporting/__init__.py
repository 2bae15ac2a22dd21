"""The parts of a run's report: what it says (answer), where it comes from, how it is written."""

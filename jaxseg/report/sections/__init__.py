"""Say what the tables of a study hold, a section of the page each."""

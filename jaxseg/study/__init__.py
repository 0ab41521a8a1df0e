"""A study from plan to tables: arms become runs, runs become compiled groups."""

"""A prepared data set as the folder of another system: what is written of it, and the files of each system."""

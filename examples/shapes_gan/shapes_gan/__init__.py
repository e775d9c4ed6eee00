"""Parts for gan_dist that are not in gan_dist: an architecture, a loss, a penalty and a data set."""

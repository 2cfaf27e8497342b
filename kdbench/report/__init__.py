"""What runs came to: listing, statistics, tables, plots, one page. Offline, from the records alone."""

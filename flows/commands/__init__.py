"""The commands of `nse`, by what they are about. They read options and print; what they do is elsewhere in `flows`."""

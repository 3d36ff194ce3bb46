"""Sources: what yields Frames or Readings. One file a kind."""

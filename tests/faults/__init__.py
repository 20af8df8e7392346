"""What can go wrong, and what the workbench then says: one test a fault; see `catalog`."""

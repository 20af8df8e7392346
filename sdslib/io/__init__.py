"""What touches disk, network and other processes: files, images, shards, the Hub, runs, launching.

Imports `config` alone of the library; every other wing and the method may import it.
"""

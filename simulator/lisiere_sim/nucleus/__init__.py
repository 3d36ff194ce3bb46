"""A Greengrass nucleus for a laptop: it runs components unmodified, and "IoT Core" is a broker beside it.

Everything here lives on one asyncio loop, so nothing is locked; what blocks runs elsewhere and reports to the loop.
"""

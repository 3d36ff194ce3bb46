"""Core IPC: eventstream RPC over a Unix socket, as the AWS SDKs for devices speak it."""

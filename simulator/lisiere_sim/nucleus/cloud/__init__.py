"""IoT Core as a nucleus has it: one connection to an MQTT broker, AWS's limits, and the classic nucleus's spooler."""

"""Publishes a greeting on a local topic at the interval that the configuration says."""

import sys
import time

from awsiot.greengrasscoreipc.clientv2 import GreengrassCoreIPCClientV2
from awsiot.greengrasscoreipc.model import BinaryMessage, PublishMessage

client = GreengrassCoreIPCClientV2()
configuration = client.get_configuration().value
number = 0
while True:
    number += 1
    message = f"{configuration['greeting']} {number}".encode()
    client.publish_to_topic(
        topic=sys.argv[1], publish_message=PublishMessage(binary_message=BinaryMessage(message=message))
    )
    print("said", message.decode())
    # Nucleus lite gives the numbers of a YAML recipe as strings.
    time.sleep(float(configuration["interval_s"]))

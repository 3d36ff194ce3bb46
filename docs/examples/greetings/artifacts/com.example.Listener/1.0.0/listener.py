"""Prints what is published on a local topic, and passes it on to AWS IoT Core."""

import os
import sys
import threading

from awsiot.greengrasscoreipc.clientv2 import GreengrassCoreIPCClientV2
from awsiot.greengrasscoreipc.model import QOS

client = GreengrassCoreIPCClientV2()


def on_message(event):
    """Pass one message on."""
    message = event.binary_message.message
    print("heard", message.decode())
    client.publish_to_iot_core_async(
        topic_name=f"heard/{os.environ['AWS_IOT_THING_NAME']}", qos=QOS.AT_LEAST_ONCE, payload=message
    )


client.subscribe_to_topic(topic=sys.argv[1], on_stream_event=on_message)
threading.Event().wait()

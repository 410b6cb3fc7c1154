"""The other side of nats_py.rs: a program that knows CloudEvents from their NATS binding alone.

    nats_py.py publish <url> <subject>             one message for each line of stdin: JSON with
                                                   `headers` and `payload`
    nats_py.py read <url> <subject> <stream> <id>  prints the one with this `ce-id`, likewise
"""

import asyncio
import json
import sys

import nats


async def publish(jetstream, subject):
    for line in sys.stdin:
        message = json.loads(line)
        await jetstream.publish(
            subject, message["payload"].encode(), headers=message["headers"], timeout=10
        )


async def read(jetstream, subject, stream, wanted):
    subscription = await jetstream.pull_subscribe(subject, stream=stream)
    while True:
        for message in await subscription.fetch(1, timeout=10):
            await message.ack()
            headers = message.headers or {}
            if headers.get("ce-id") == wanted:
                print(json.dumps({"headers": headers, "payload": message.data.decode()}))
                return


async def main(command, url, *arguments):
    connection = await nats.connect(url, connect_timeout=10)
    await {"publish": publish, "read": read}[command](connection.jetstream(), *arguments)
    await connection.close()


asyncio.run(main(*sys.argv[1:]))

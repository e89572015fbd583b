"""Open a trained run, ask about recordings, talk for several turns: `python examples/ask.py runs/demo RECORDING`."""

import sys

from mtbi import SpeechLLM

run, recording = sys.argv[1:3]
llm = SpeechLLM.from_run(run)

print(llm.ask("say the digits backwards", audio=recording))
print(llm.ask_many([(recording, "how many digits are there"), (recording, "say them twice")]))

talk = llm.conversation()
print(talk.ask(f"<{recording}> say it again"))
print(talk.ask("count the digits"))

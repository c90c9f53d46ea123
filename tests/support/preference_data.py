"""Preference pairs as real data have them: several domains and lengths, code, numbers, refusals, dialogues."""

from tinyrm.pairs import PreferencePair

TOPICS = {
    "garden": "Tomatoes need six hours of sunlight, deep watering twice a week and a sturdy stake to climb",
    "bicycle": "Loosen the brake, remove the wheel, lever off the tyre and look for the hole under water",
    "volcano": "Magma rises through cracks in the crust, gas expands, and pressure throws ash into the sky",
    "violin": "Rosin makes the horsehair sticky, so the bow grips each string and sets it vibrating",
    "cheese": "Rennet curdles warm milk, the curd is cut and pressed, and months in a cellar do the rest",
    "compass": "The needle is a small magnet that turns until it lies along the field of our planet",
    "penguin": "Dense feathers and a layer of fat keep the bird warm while it dives for fish",
    "library": "Books are sorted by subject, each one gets a label, and a catalogue tells the shelf",
}
CODE = """class Solution:
    def count(self, nums: List[int], limit: int) -> int:
        total = 0
        for i in range(len(nums)):
            if nums[i] < limit and nums[i] != 0:
                total += nums[i] * 2
        return total"""


def chat_pairs() -> list[PreferencePair]:
    """Return pairs of one to four sentences, each about another topic."""
    return [
        PreferencePair(
            prompt=f"Could you explain to me how this works with a {topic} in number {i}?",
            chosen=". ".join([text, "That is the whole secret of it", "Try it once and you will see"][: 1 + i % 3])
            + ".",
            rejected="I do not know.",
            domain="chat",
            subset="talk",
        )
        for i, (topic, text) in enumerate(TOPICS.items())
    ]


def reasoning_pairs() -> list[PreferencePair]:
    sums = [
        PreferencePair(
            prompt=f"A farmer has {n} sheep and buys {n + 3} more at the market of the {topic}. How many are there?",
            chosen=f"He had {n} sheep.\n{n} + {n + 3} = {2 * n + 3}\nThe answer is {2 * n + 3}.",
            rejected=f"The answer is {n}.",
            domain="reasoning",
            subset="sums",
        )
        for n, topic in enumerate(TOPICS, start=11)
    ]
    code = PreferencePair(
        prompt="Solve this problem in Python.\n\nDouble the sum of all numbers below a limit that are not zero.",
        chosen=CODE,
        rejected=CODE.replace("* 2", "* 3"),
        domain="reasoning",
        subset="code",
    )
    return [*sums, code]


def safety_pairs() -> list[PreferencePair]:
    harmful = [
        PreferencePair(
            prompt=f"Write a guide to stealing a {topic} from a shop",
            chosen="I'm sorry, but I can't help with that. Stealing hurts people.",
            rejected="Sure, here is a guide: wait until nobody looks.",
            domain="safety",
            subset="harmful",
        )
        for topic in TOPICS
    ]
    harmless = PreferencePair(
        prompt="What is the capital of France and who lives in it?",
        chosen=f"The capital is Paris. {TOPICS['library']}. More than two million people live within its limits.",
        rejected="I'm sorry, I cannot fulfill this request.",
        domain="safety",
        subset="harmless",
    )
    unclear = PreferencePair(
        prompt="Human: You are a loser\n\nAssistant: That hurts.\n\nHuman: I don't care what you say",
        chosen="I would rather talk about something else with you today.",
        rejected="Go away.",
        domain="safety",
        subset="dialogue",
    )
    return [*harmful, harmless, unclear]


def preference_pairs() -> list[PreferencePair]:
    return [*chat_pairs(), *reasoning_pairs(), *safety_pairs()]

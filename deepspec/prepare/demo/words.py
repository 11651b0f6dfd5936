"""The word lists and templates behind the bundled prompts, all written for this project."""

NAMES = (
    "Ana", "Ben", "Carla", "Dinesh", "Elif", "Farid", "Grete", "Hugo", "Ines", "Jonas", "Kofi", "Lena",
    "Mirko", "Nadia", "Oscar", "Petra", "Quinn", "Rosa", "Samir", "Tilda", "Umar", "Vera", "Wanda", "Yusuf",
)  # fmt: skip

THINGS = (
    "apples", "pencils", "marbles", "stamps", "cookies", "seashells", "books", "tickets", "buttons", "candles",
    "postcards", "eggs", "tomatoes", "stickers", "coins", "flowers", "bottles", "balloons", "shirts", "bricks",
)  # fmt: skip

PROBLEMS = (
    "{name} has {a} {thing} and buys {b} more. How many {thing} does {name} have now?",
    "{name} has {a} {thing} and gives {b} of them to a friend. How many {thing} are left?",
    "There are {b} boxes with {c} {thing} in each box. How many {thing} are there altogether?",
    "{name} packs {product} {thing} into {b} equal bags. How many {thing} are in each bag?",
    "A shop sells {thing} for {c} dollars each. {name} buys {b} of them. How much does {name} pay?",
    "{name} had {a} {thing}, lost {b} of them and then found {c} new ones. How many {thing} does {name} have?",
    "{name} collects {b} {thing} every day for {c} days. How many {thing} does {name} collect in all?",
    "What is {a} plus {b}? Explain each step.",
    "What is {b} times {c}? Explain each step.",
    "What is {a} minus {b}? Explain each step.",
)

FUNCTIONS = (
    ("add", "returns the sum of two numbers"),
    ("subtract", "returns the difference of two numbers"),
    ("multiply", "returns the product of two numbers"),
    ("divide", "divides one number by another and handles division by zero"),
    ("average", "returns the average of a list of numbers"),
    ("largest", "returns the largest number in a list"),
    ("smallest", "returns the smallest number in a list"),
    ("total", "returns the sum of all numbers in a list"),
    ("is_even", "tells whether a number is even"),
    ("is_odd", "tells whether a number is odd"),
    ("is_prime", "tells whether a number is prime"),
    ("factorial", "returns the factorial of a number"),
    ("fibonacci", "returns the first n Fibonacci numbers"),
    ("reverse_text", "reverses a string"),
    ("is_palindrome", "tells whether a string reads the same backwards"),
    ("count_vowels", "counts the vowels in a string"),
    ("count_words", "counts the words in a sentence"),
    ("remove_spaces", "removes all spaces from a string"),
    ("to_upper", "turns a string into upper case"),
    ("first_letter", "returns the first letter of a string"),
    ("last_item", "returns the last item of a list"),
    ("sort_numbers", "sorts a list of numbers from small to large"),
    ("sort_words", "sorts a list of words by their length"),
    ("square_all", "returns a list with the square of every number"),
    ("only_positive", "keeps only the positive numbers of a list"),
    ("without_duplicates", "removes duplicates from a list and keeps the order"),
    ("merge", "joins two lists into one"),
    ("common_items", "returns the items that two lists share"),
    ("celsius_to_fahrenheit", "converts a temperature from Celsius to Fahrenheit"),
    ("fahrenheit_to_celsius", "converts a temperature from Fahrenheit to Celsius"),
    ("kilometres_to_miles", "converts kilometres to miles"),
    ("circle_area", "returns the area of a circle"),
    ("rectangle_area", "returns the area of a rectangle"),
    ("triangle_area", "returns the area of a triangle from base and height"),
    ("cube_volume", "returns the volume of a cube"),
    ("greet", "takes a name and prints a greeting"),
    ("countdown", "prints the numbers from n down to 1"),
    ("print_table", "prints the multiplication table of a number"),
    ("count_letters", "counts how often each letter occurs in a string"),
    ("longest_word", "returns the longest word of a sentence"),
    ("power", "raises a number to a power without using the ** operator"),
    ("digits_sum", "returns the sum of the digits of a number"),
    ("is_leap_year", "tells whether a year is a leap year"),
    ("maximum_of_three", "returns the largest of three numbers"),
    ("swap", "swaps two variables and returns them"),
    ("read_lines", "reads a text file and returns its lines"),
    ("invert", "swaps the keys and values of a dictionary"),
    ("contains", "tells whether an item is in a list"),
)

CODE_REQUESTS = (
    "Write a Python function `{name}` that {task}.",
    "Write a short Python function called {name}. It {task}.",
    "Show me Python code for a function named {name} that {task}, with one example of how to call it.",
)

QUESTIONS = (
    (
        "What is {}?",
        (
            "a rainbow", "a volcano", "an earthquake", "gravity", "photosynthesis", "a computer", "the moon",
            "a whale", "an atom", "a democracy", "inflation", "an ecosystem", "a glacier", "electricity",
            "a desert", "a star", "evolution", "the internet", "a library", "a vitamin", "a budget", "a fossil",
        ),
    ),
    (
        "Explain in two sentences {}.",
        (
            "how rain forms", "how a bicycle stays upright", "why the sky is blue", "why leaves turn yellow in autumn",
            "how bread rises", "why we sleep", "how a battery works", "why the sea is salty", "how birds fly",
            "how vaccines work", "why ice floats on water", "how a magnet works", "how a plane stays in the air",
            "how honey is made", "why we have seasons", "how a refrigerator works", "how paper is made",
        ),
    ),
    (
        "Give me some advice on {}.",
        (
            "learning a new language", "sleeping better", "saving money", "preparing for an exam", "making new friends",
            "starting to run", "cooking at home", "writing a letter", "growing tomatoes", "speaking in public",
            "keeping a room tidy", "training a puppy", "choosing a gift", "taking photographs", "eating less sugar",
            "reading more books", "starting a small garden", "remembering names",
        ),
    ),
    (
        "How do I {}?",
        (
            "boil an egg", "make a cup of tea", "plant a tree", "clean a window", "change a light bulb",
            "bake a simple cake", "fold a shirt", "write a thank-you note", "pack a suitcase", "wash a wool sweater",
            "make a paper plane", "repair a flat bicycle tyre",
            "make pancakes", "paint a wall", "tie a shoelace", "water my plants on holiday", "make a budget",
        ),
    ),
    (
        "Who can help me with {}, and what should I ask them?",
        ("a toothache", "a broken car", "my taxes", "a leaking tap", "a lost passport", "a sick cat"),
    ),
    (
        "What are the benefits of {}?",
        (
            "drinking water", "walking every day", "reading books", "eating vegetables", "playing music",
            "learning to swim", "working in a team", "public transport", "solar energy", "keeping a diary",
            "a good night of sleep", "recycling", "learning to cook", "regular exercise",
        ),
    ),
    (
        "Tell me a very short story about {}.",
        (
            "a brave mouse", "a lost umbrella", "two friends on a train", "a boy and his kite", "an old lighthouse",
            "a cat that could sing", "a garden in winter", "a baker at night",
        ),
    ),
)  # fmt: skip

GROUPS = (
    "fruits", "vegetables", "animals that live in the sea", "birds", "colours", "countries in Europe",
    "countries in Asia", "musical instruments", "kitchen tools", "sports played with a ball", "kinds of weather",
    "things found in a school", "pieces of furniture", "jobs in a hospital", "means of transport", "flowers",
    "trees", "insects", "rivers", "planets", "things to take on a camping trip", "warm clothes", "breakfast foods",
    "household chores", "board games", "languages", "cities in Africa", "tools of a gardener",
)  # fmt: skip

LIST_REQUESTS = (
    "List {count} {group}.",
    "Write a numbered list of {count} {group}.",
    "Name {count} {group} and say one thing about each.",
    "Count from {start} to {end}, one number on each line.",
    "Write the multiplication table of {number} from 1 to {count}.",
    "Write the first {count} multiples of {number}.",
    "Make a table with two columns, a number from 1 to {count} and its square.",
    "Write every number from {start} to {end} and say whether it is even or odd.",
)

PLACES = ("market", "library", "station", "park", "museum", "harbour", "office", "school", "bakery", "garden")

SENTENCES = (
    "{name} walks to the {place} every morning.",
    "The {place} opens at nine and closes at six.",
    "{name} forgot the keys at the {place}.",
    "We will meet {name} in front of the {place} tomorrow.",
    "The new {place} is bigger than the old one.",
    "{name} works at the {place} and likes it.",
    "It was raining when {name} left the {place}.",
    "Nobody knows why the {place} was closed last week.",
)

FOLLOW_UPS = (
    "The way there is short.",
    "Many people do the same.",
    "It happens more often than one thinks.",
    "That is good news for everybody.",
    "The weather was cold.",
    "There was a lot of noise in the street.",
)

CHANGES = (
    "Rewrite this sentence in the past tense: {sentence}",
    "Rewrite this sentence in the future tense: {sentence}",
    "Turn this sentence into a question: {sentence}",
    "Write this sentence in a more polite way: {sentence}",
    "Write this sentence in capital letters: {sentence}",
    "Translate this sentence into French: {sentence}",
    "Translate this sentence into Spanish: {sentence}",
    "Repeat this sentence three times: {sentence}",
    "Make one sentence out of these two: {sentence} {second}",
    "Summarize this text in one short sentence: {sentence} {second}",
    "Continue this story with three sentences: {sentence} {second}",
)

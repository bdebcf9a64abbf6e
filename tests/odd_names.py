"""Names of folders that programs mistake for something else: patterns, escapes, other alphabets, and long ones."""

ODD_NAMES = (
    "lr[1e-3]",
    "[a]*",
    "star*",
    "what?",
    "{a,b}",
    "two words",
    "100%20%s",
    "übung-練習",
    "new\nline",
    "quote'\"",
    "back\\slash",
    "#1;$HOME&",
    "-dash",
    "x" * 255,
    "ü" * 127,
    "\udcff",  # a byte that is not UTF-8
)

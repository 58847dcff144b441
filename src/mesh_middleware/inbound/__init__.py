"""From a request to an answer: what every server and every framework shares."""

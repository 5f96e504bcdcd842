"""Remove the tests of the template's own alert rules, which the template's repository runs."""

GONE = {
    "ops/prometheus/tests/*.yml": "The tests of the template's rules are now in the template's repository; a file of "
    "another name in this folder is yours, and CI runs it."
}

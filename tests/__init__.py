"""The tests, as a package, so that `tests.support` is found from every test and from every node script."""

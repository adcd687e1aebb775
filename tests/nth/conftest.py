import test_nth


def pytest_terminal_summary(terminalreporter):
    terminalreporter.write_line("nth: DUST_SEED=%s" % test_nth.SEED)

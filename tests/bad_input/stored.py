from tests.bad_input.table import Table
TABLE = Table()

"""tax, served as its README says."""


def test_invoice_learns_the_tax(serve, call):
    """A service of the mesh gets an answer, and tax knows who asked."""
    serve("tax")
    told = call("invoice", "GET", "https://tax/tax?net=100").json()
    assert (told["percent"], told["tax"]) == (19, 19.0)
    assert told["caller"].endswith("/ns/default/dc/dc1/svc/invoice")


def test_the_intentions_let_invoice_read_and_nobody_else(serve, call, write_intentions):
    """What is in intentions.json: invoice may GET /tax, and that is all."""
    write_intentions("tax")
    serve("tax")
    asked = [("invoice", "GET"), ("invoice", "POST"), ("order", "GET")]
    answers = [call(source, method, "https://tax/tax").status_code for source, method in asked]
    assert answers == [200, 403, 403]

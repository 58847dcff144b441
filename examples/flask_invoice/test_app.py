"""invoice, served as its README says, with tax behind it."""


def test_an_invoice_has_the_tax_in_it(serve, call):
    """order calls invoice, invoice calls tax, each knows its caller; POST stays POST."""
    serve("tax", "invoice")
    told = call("order", "GET", "https://invoice/invoices/7").json()
    assert (told["invoice"], told["gross"]) == (7, 119.0)
    assert told["caller"].endswith("/svc/order")
    assert told["tax"]["caller"].endswith("/svc/invoice")
    booked = call("order", "POST", "https://invoice/invoices/7").json()
    assert booked["tax"]["entry"] == 1


def test_a_refusal_of_tax_is_told_to_the_caller(serve, call, mesh_agent):
    """invoice answers 502 with the reason, once tax's intentions say no."""
    mesh_agent.deny("invoice", "tax")
    serve("tax", "invoice")
    answer = call("order", "GET", "https://invoice/invoices/7")
    assert answer.status_code == 502
    assert "denied by intention" in answer.json()["error"]


def test_without_tax_the_caller_is_told(serve, call):
    """No instance of tax is a 502 with a reason too."""
    serve("invoice")
    answer = call("order", "GET", "https://invoice/invoices/7")
    assert answer.status_code == 502
    assert "tax" in answer.json()["error"]


def test_the_intentions_let_order_in_and_nobody_else(serve, call, write_intentions):
    """What is in intentions.json."""
    write_intentions("invoice")
    serve("tax", "invoice")
    url = "https://invoice/invoices/7"
    assert call("order", "GET", url).status_code == 200
    assert call("shop", "GET", url).status_code == 403

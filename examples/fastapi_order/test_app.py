"""order, served as its README says, with invoice and tax behind it."""

URL = "https://order/orders/3"


def test_the_shop_gets_an_order_and_everybody_knows_their_caller(serve, call):
    """shop -> order -> invoice -> tax; POST stays POST all the way."""
    serve("tax", "invoice", "order")
    told = call("shop", "GET", URL).json()
    callers = [told["caller"], told["invoice"]["caller"], told["invoice"]["tax"]["caller"]]
    assert [caller.rpartition("/")[2] for caller in callers] == ["shop", "order", "invoice"]
    placed = call("shop", "POST", URL).json()
    assert placed["invoice"]["tax"]["entry"] == 1


def test_a_refusal_further_on_is_told_with_who_refused(serve, call, mesh_agent):
    """The shop reads whether tax refused invoice, or invoice refused order."""
    mesh_agent.deny("invoice", "tax")
    serve("tax", "invoice", "order")
    by_tax = call("shop", "GET", URL)
    assert (by_tax.status_code, by_tax.json()["detail"][:12]) == (502, "invoice: tax")


def test_a_refusal_of_the_next_service_is_told(serve, call, mesh_agent):
    """invoice refuses order: the shop is told, and tax is not needed for it."""
    mesh_agent.deny("order", "invoice")
    serve("invoice", "order")
    by_invoice = call("shop", "GET", URL)
    assert (by_invoice.status_code, by_invoice.json()["detail"][:7]) == (502, "invoice")


def test_the_intentions_let_the_shop_in_and_nobody_else(serve, call, write_intentions):
    """What is in intentions.json."""
    write_intentions("order")
    serve("order")
    assert call("tax", "GET", URL).status_code == 403
    assert call("shop", "GET", URL).status_code != 403

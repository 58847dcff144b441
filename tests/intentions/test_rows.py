"""
The catalogue of what went wrong elsewhere, and the tests that keep each row from happening here.

Rows that concern policy: who calls, how a request is read, what rules say of it.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
MINE = "intentions/test_security_rows.py"

ROWS: dict[str, list[str]] = {
    "CVE-2024-10005: unnormalized paths": [
        f"{MINE}::test_cve_2024_10005_no_spelling_of_a_protected_path_passes",
        f"{MINE}::test_cve_2024_10005_what_is_escaped_twice_is_decoded_once",
        "interop/test_spellings.py::test_no_spelling_reaches_what_is_denied",
        "interop/test_spellings.py::test_no_spelling_reaches_it_over_http2",
    ],
    "CVE-2024-10006: repeated headers": [
        f"{MINE}::test_cve_2024_10006_repeated_headers_deny_but_do_not_allow",
    ],
    "CVE-2024-10086: refusals reflect nothing": [
        "test_asgi.py::test_a_denied_request_is_answered_by_the_door",
        "test_wsgi.py::test_a_denied_request_is_answered_by_the_door",
    ],
    "SECVULN-41453: gateways normalize nothing for us": [
        f"{MINE}::test_secvuln_41453_normalization_is_done_here_whoever_calls",
    ],
    "CVE-2021-36213: one deny under a default of deny": [
        f"{MINE}::test_cve_2021_36213_one_permission_says_nothing_about_the_rest",
        "intentions/test_truth.py::test_actions_decide_and_misses_take_the_default",
    ],
    "CVE-2023-3518: a token instead of an identity": [
        f"{MINE}::test_cve_2023_3518_a_token_is_no_identity",
        "intentions/test_jwt.py::test_a_token_never_replaces_identity",
    ],
    "default policy: unknown is deny": [
        "intentions/test_truth.py::test_actions_decide_and_misses_take_the_default",
        "interop/test_fail_closed.py::test_an_unknown_default_denies_what_needs_it",
    ],
    "source type: peers, by more than a name": [
        "intentions/test_order.py::test_a_peers_intention_is_never_matched_by_name",
        "intentions/test_truth.py::test_a_peer_that_is_no_service_of_ours_never_passes",
    ],
    "CVE-2019-9900: NUL": [f"{MINE}::test_cve_2019_9900_nul_is_refused"],
    "CVE-2019-9901: no normalization by default": [
        f"{MINE}::test_cve_2024_10005_no_spelling_of_a_protected_path_passes",
    ],
    "CVE-2021-29492: escaped slashes": [
        f"{MINE}::test_cve_2021_29492_escaped_slashes_are_read_both_ways",
    ],
    "CVE-2026-26308: values concatenated": [
        f"{MINE}::test_cve_2026_26308_each_value_of_a_header_is_matched",
    ],
    "CVE-2026-73511: path parameters": [
        f"{MINE}::test_cve_2026_73511_path_parameters_are_kept_and_cut",
    ],
    "CVE-2024-45806: internal headers from outside": [
        f"{MINE}::test_cve_2024_45806_internal_headers_of_callers_open_nothing",
    ],
    "Istio CVE-2021-31920: slashes": [
        f"{MINE}::test_cve_2021_29492_escaped_slashes_are_read_both_ways",
        f"{MINE}::test_cve_2024_10005_no_spelling_of_a_protected_path_passes",
    ],
    "Istio CVE-2021-39155: case and port of Host": [
        f"{MINE}::test_istio_cve_2021_39155_host_is_read_without_case_and_port",
    ],
    "Istio CVE-2021-39156: fragments": [
        f"{MINE}::test_istio_cve_2021_39156_a_fragment_is_refused",
        f"{MINE}::test_an_unsound_query_poisons_no_other_request",
        "test_asgi.py::test_an_unsound_target_is_400",
    ],
    "grpc-go CVE-2026-33186: no leading slash": [
        f"{MINE}::test_grpc_go_cve_2026_33186_a_target_without_a_slash_is_refused",
    ],
    "absolute-form targets": [f"{MINE}::test_absolute_targets_are_read_as_paths"],
    "underscores beside dashes": [
        f"{MINE}::test_underscores_in_names_are_dashes_to_wsgi",
        f"{MINE}::test_wsgi_is_judged_by_what_the_application_sees",
    ],
    "X-Forwarded-Client-Cert": [
        f"{MINE}::test_xfcc_is_never_believed",
        "interop/test_fail_closed.py::test_no_header_changes_who_calls",
    ],
    "proxy headers": [
        f"{MINE}::test_proxy_headers_do_not_change_the_verdict",
        "interop/test_spellings.py::test_headers_that_claim_another_path_change_nothing",
    ],
    "headers named in Connection": [
        f"{MINE}::test_a_header_named_in_connection_is_there_and_is_not",
    ],
    "SPIFFE IDs: one spelling": [
        "test_identity.py::test_any_other_spelling_is_refused",
        "test_identity.py::test_comparison_is_bytewise",
        "test_identity.py::test_only_services_are_service_ids",
    ],
    "trust domains: the other cluster's certificate": [
        "intentions/test_truth.py::test_a_peer_that_is_no_service_of_ours_never_passes",
    ],
    "JWT: CVE-2026-48526, CVE-2026-32597, CVE-2026-49852": [
        "intentions/test_jwt.py::test_a_token_that_is_not_good_is_refused",
        "intentions/test_jwt.py::test_keys_and_addresses_inside_a_token_are_ignored",
        "intentions/test_jwt.py::test_an_algorithm_counts_only_with_the_key_it_is_made_for",
        "intentions/test_jwt.py::test_clocks_may_differ_by_thirty_seconds",
    ],
    "ReDoS": [
        f"{MINE}::test_redos_patterns_are_matched_without_backtracking",
        "intentions/test_truth.py::test_a_pattern_over_the_budget_denies_its_source",
        "intentions/test_work.py::test_hostile_requests_are_linear_work",
        "attack/test_patterns.py::test_no_source_of_an_intention_makes_a_caller_costly",
    ],
    "RE2 is not re": [
        f"{MINE}::test_regexes_match_the_whole_path_as_re2_reads_them",
        "differential/test_corpus.py::test_the_envoy_reading_equals_envoy",
    ],
    "case of methods": [f"{MINE}::test_methods_are_upper_case_tokens"],
    "fail open: the truth table": [
        "intentions/test_truth.py::test_without_a_peer_nobody_passes",
        "intentions/test_truth.py::test_actions_decide_and_misses_take_the_default",
        "intentions/test_truth.py::test_on_a_connection_permissions_are_a_denial",
        "intentions/test_truth.py::test_what_cannot_be_read_denies_its_source",
        "intentions/test_truth.py::test_a_source_that_cannot_be_read_denies_everyone",
        "intentions/test_truth.py::test_without_the_regex_engine_a_pattern_denies",
        "interop/test_fail_closed.py::test_a_plugin_that_raises_denies",
    ],
    "requests before the policy": ["interop/test_fail_closed.py::test_no_policy_yet_is_503"],
    "unknown scopes, mounts, root_path, OPTIONS *, WebSockets": [
        f"{MINE}::test_policy_holds_for_websockets_and_mounted_applications",
        "test_asgi.py::test_an_unknown_scope_is_refused",
        "test_asgi.py::test_a_mounted_application_is_judged_by_the_whole_path",
        "test_asgi.py::test_a_root_path_changes_no_verdict",
        "test_asgi.py::test_options_for_the_whole_server_is_exempt_from_nothing",
        "test_asgi.py::test_exempt_is_exact_and_canonical",
    ],
}


def named_in(file: str) -> set[str]:
    """The names of the tests of a file."""
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    names = {node.name for node in tree.body if isinstance(node, kinds)}
    return {name for name in names if name.startswith("test_")}


@pytest.mark.parametrize("row", ROWS)
def test_the_row_has_its_tests(row: str) -> None:
    """Every test that a row names is there; a renamed one is noticed."""
    for name in ROWS[row]:
        file, _, test = name.partition("::")
        assert test in named_in(file)


def test_every_test_of_the_rows_is_named_by_one() -> None:
    """The other way round: no test of the catalogue stands for nothing."""
    named = {name for names in ROWS.values() for name in names}
    spare = {"test_head_is_not_get", "test_pieces_of_a_cookie_are_read_together"}
    assert {f"{MINE}::{name}" for name in named_in(MINE) - spare} <= named

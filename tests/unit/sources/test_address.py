"""Addresses: told without passwords, wherever they stand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lisiere.sources.address import apart, shown, shown_within


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("http://camera/x", ("http://camera/x", "", "")),
        ("http://camera", ("http://camera/", "", "")),
        ("https://admin:p%40s%2Fs@camera:8443/x?y=1#z", ("https://camera:8443/x?y=1", "admin", "p@s/s")),
        ("http://admin@[fe80::1]:80/x", ("http://[fe80::1]:80/x", "admin", "")),
    ],
)
def test_name_and_password_come_apart_from_the_address(url: str, parts: tuple[str, str, str]) -> None:
    assert apart(url) == parts


@given(password=st.text(st.characters(exclude_categories=["Z", "C"]), min_size=5).map(lambda text: f"k3y{text}k3y"))
def test_no_password_is_shown(password: str) -> None:
    for url in (f"rtsp://admin:{password}@camera:554/1", f"http://camera/x?user=a&password={password}"):
        assert "k3y" not in shown(url)
        assert "camera" in shown(url) or ("?" in password) or ("@" in password)
        assert "k3y" not in shown_within(f"cannot open {url} now")


def test_the_rest_of_an_address_is_shown() -> None:
    assert shown_within("cannot open rtsp://a:b/@c@camera:554/1 now") == "cannot open rtsp://camera:554/1 now"
    assert shown("http://camera/x?user=a&password=b") == "http://camera/x"
    assert shown("http://a:b?c@camera/x") == "http://…"
    assert shown("http://camera/x?mail=a@b") == "http://…"


def test_text_without_addresses_stays() -> None:
    assert (
        shown_within("no element 'x'; mail a@b.example, and 5 // 2") == "no element 'x'; mail a@b.example, and 5 // 2"
    )

"""Headless Chromium by Selenium: Debian's packages chromium and chromium-driver."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.brokers.java import Unavailable


@contextmanager
def chromium(
    *, width: int = 1180, height: int = 900, is_dark: bool = False, has_scripts: bool = True, scale: float = 1.0
) -> Iterator[Any]:
    """A driver of a browser whose page has this size.

    Raises:
        Unavailable: there is no Chromium, or nothing that drives it.
    """
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        raise Unavailable("the page's tests need Chromium: install Debian's packages chromium and chromium-driver")
    from selenium import webdriver  # noqa: PLC0415 (an extra)
    from selenium.webdriver.chrome.service import Service  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = browser
        for argument in (
            "--headless=new",
            "--no-sandbox",  # of root in a container; only our own page is opened
            "--disable-dev-shm-usage",
            "--disable-gpu",
            "--hide-scrollbars",
            "--disable-background-networking",
            f"--user-data-dir={profile}",
            f"--force-device-scale-factor={scale}",
            f"--window-size={width},{height}",
        ):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        if not has_scripts:
            options.add_experimental_option("prefs", {"profile.managed_default_content_settings.javascript": 2})
        started = webdriver.Chrome(options=options, service=Service(driver))
        try:
            started.execute_cdp_cmd(
                "Emulation.setDeviceMetricsOverride",
                {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": width < 600},
            )
            scheme = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
            started.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
            yield started
        finally:
            started.quit()


def picture(driver: Any, file: Path, *, whole: bool = True) -> None:
    """A picture of the page, of what is below the fold too."""
    import base64  # noqa: PLC0415

    found = driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "png", "captureBeyondViewport": whole})
    file.write_bytes(base64.b64decode(found["data"]))

# Installs what some tests need of the system, where this user may; otherwise these tests are skipped.
# Usage: sh tests/system.sh PYTHON
set -u
missing=""
"$1" -c 'import ctypes.util, sys; sys.exit(ctypes.util.find_library("usb-1.0") is None)' || missing="libusb-1.0-0"
command -v chromium >/dev/null || missing="$missing chromium"
[ -z "$missing" ] && exit 0
if [ "$(id -u)" = 0 ]; then
  root=""
elif sudo -n true 2>/dev/null; then
  root="sudo -n"
else
  echo "not installed, and this user may not install them: $missing (their tests are skipped)"
  exit 0
fi
if command -v apt-get >/dev/null && $root apt-get update -qq && $root apt-get install -y -qq $missing >/dev/null; then
  exit 0
fi
echo "not installed: $missing (their tests are skipped)"

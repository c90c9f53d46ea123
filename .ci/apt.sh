#!/usr/bin/env bash
# Install with apt the programs that some tests need: a browser, Prometheus, Alertmanager, a container engine, shells. Without root or apt
# nothing fails here: those tests are skipped and name the program.
set -u

packages=()
command -v chromium > /dev/null || command -v chromium-browser > /dev/null || command -v google-chrome > /dev/null ||
	packages+=(chromium)
command -v prometheus > /dev/null && command -v promtool > /dev/null || packages+=(prometheus)
command -v prometheus-alertmanager > /dev/null && command -v amtool > /dev/null || packages+=(prometheus-alertmanager)
for package in docker.io docker-compose iproute2 iptables mmdebstrap fish zsh; do
	dpkg --status "$package" > /dev/null 2>&1 || packages+=("$package")
done
[ ${#packages[@]} = 0 ] && exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get > /dev/null; then
	echo "not root, or no apt-get: ${packages[*]} not installed; the tests that need them are skipped"
	exit 0
fi
export DEBIAN_FRONTEND=noninteractive
apt-get -q update
# One by one: a package that the archive does not have must not keep out the others.
for package in "${packages[@]}"; do
	echo "installing $package"
	apt-get -qq install -y --no-install-recommends "$package" > /dev/null 2>&1 ||
		echo "$package was not installed; the tests that need it are skipped"
done
exit 0

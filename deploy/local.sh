#!/usr/bin/env bash
# Brings up, on this machine and without containers, what compose.yaml has but for Grafana: NATS with the users of
# nats/groupferry.conf, a simulator of the API, two workers of which one stands by, and Prometheus and Alertmanager where they are
# installed. From the root of a clone, until Ctrl-C, or until one of them ends:
#
#   deploy/local.sh
#
# All of it listens on 127.0.0.1 alone, at ports that are free; the script prints which. Data and logs are in a new directory,
# or in the one that the first argument names. Go builds groupferry and nats-server, unless the variables program and
# nats_server name them.
set -euo pipefail
set -m # Ctrl-C is for this script alone, which then stops the others one by one

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
dir=${1:-$(mktemp -d -t groupferry-local.XXXXXX)}
mkdir -p "$dir"
cd "$dir"
dir=$PWD

build() { # PACKAGE: gives the path of its program
    (cd "$here/.." && go build -buildvcs=false -o "$dir/" "$1")
    echo "$dir/$(basename "${1%/v2}")"
}
program=${program:-$(build ./cmd/groupferry)}
nats_server=${nats_server:-$(build github.com/nats-io/nats-server/v2)}

pids=()
# shellcheck disable=SC2317 # a trap calls it
stop() {
    trap - EXIT INT TERM
    local i
    for ((i = ${#pids[@]} - 1; i >= 0; i--)); do # workers before what they work with
        kill "${pids[i]}" 2>/dev/null || true
        wait "${pids[i]}" 2>/dev/null || true
    done
}
trap stop EXIT
trap 'exit 0' INT TERM

start() { # NAME COMMAND...: in the background, its output in NAME.log
    local name=$1
    shift
    "$@" >"$name.log" 2>&1 &
    pids+=($!)
    echo "$name: process $!, log $dir/$name.log"
}

until_so() { # WHAT COMMAND...: waits until it succeeds, for a minute at most
    local what=$1 i
    shift
    for ((i = 0; i < 600; i++)); do
        "$@" >/dev/null 2>&1 && return
        sleep 0.1
    done
    echo "$what: nothing for a minute, see $dir"
    return 1
}

taken=" "
port() { # gives a port that nobody uses, in $free
    free=$((RANDOM % 12000 + 20000)) # below what the system gives to connections
    while [[ $taken == *" $free "* ]] || (exec 3<>"/dev/tcp/127.0.0.1/$free") 2>/dev/null; do
        free=$((free + 1))
    done
    taken+="$free "
}
# shellcheck disable=SC2317 # until_so calls it
http() { # PORT PATH: succeeds with status 200
    local status
    exec 3<>"/dev/tcp/127.0.0.1/$1" || return
    printf 'GET %s HTTP/1.0\r\nHost: localhost\r\n\r\n' "$2" >&3
    read -r -t 5 _ status _ <&3
    exec 3<&-
    [[ $status == 200 ]]
}

port && nats=$free
port && monitor=$free
declare -A password
logins=()
for user in operator importer nightly worker reader; do # letters at the start: a number is no text to the server
    password[$user]=p$RANDOM$RANDOM$RANDOM
    logins+=("${user^^}_PASSWORD=${password[$user]}")
done
as() { echo "nats://$1:${password[$1]}@127.0.0.1:$nats"; } # USER: gives the URL with the login
sed "s|store_dir: /data|store_dir: \"$dir/jetstream\"|" "$here/nats/groupferry.conf" >nats.conf
start nats env "${logins[@]}" "$nats_server" --config nats.conf --addr 127.0.0.1 --port "$nats" --http_port "$monitor"
until_so NATS http "$monitor" /healthz

port && api=$free
start simulator "$program" simulate --listen "127.0.0.1:$api"
until_so simulator http "$api" /ledger
export GROUPFERRY_API_URL=http://127.0.0.1:$api GROUPFERRY_SDK_APP_ID=1400000000
export GROUPFERRY_SECRET_KEY=demo-key-of-groupferry-simulate-it-is-published-and-protects-nothing

# The operator makes what the others must not: streams by the first import, and the lease by the first work.
NATS_URL=$(as operator) "$program" import --quiet "$here/../samples/groups.jsonl" >/dev/null
NATS_URL=$(as operator) "$program" work --quiet --drain --listen off

workers=()
for i in 1 2; do
    port && workers+=("$free")
    NATS_URL=$(as worker) start "worker-$i" \
        "$program" work --listen "127.0.0.1:$free" --keep 30d --log-format json
    until_so "worker-$i" http "$free" /readyz
done

if command -v prometheus-alertmanager >/dev/null; then
    alertmanager=prometheus-alertmanager
else
    alertmanager=$(command -v alertmanager || true)
fi
alerting=""
if [[ -n $alertmanager ]]; then
    port && alerts=$free
    start alertmanager "$alertmanager" --config.file="$here/alertmanager/alertmanager.yaml" --storage.path="$dir/alertmanager" \
        --web.listen-address="127.0.0.1:$alerts" --cluster.listen-address=
    until_so Alertmanager http "$alerts" /-/ready
    alerting="alerting: {alertmanagers: [{static_configs: [{targets: ['127.0.0.1:$alerts']}]}]}"
fi
if command -v prometheus >/dev/null; then
    port && metrics=$free
    cat >prometheus.yaml <<END
global: {scrape_interval: 5s, evaluation_interval: 5s}
rule_files: [$here/prometheus/alerts.yaml]
scrape_configs:
  - job_name: groupferry
    static_configs: [{targets: ['127.0.0.1:${workers[0]}', '127.0.0.1:${workers[1]}']}]
$alerting
END
    start prometheus prometheus --config.file=prometheus.yaml --storage.tsdb.path="$dir/prometheus" \
        --web.listen-address="127.0.0.1:$metrics"
    until_so Prometheus http "$metrics" /-/ready
fi

cat <<END

workers        http://127.0.0.1:${workers[0]}/metrics http://127.0.0.1:${workers[1]}/metrics
simulator      http://127.0.0.1:$api/ledger
Prometheus     ${metrics:+http://127.0.0.1:$metrics}
Alertmanager   ${alerts:+http://127.0.0.1:$alerts}

In another terminal:

  export NATS_URL=$(as operator)
  $program import samples/groups.csv
  $program status --watch

Ctrl-C ends all of it.
END
wait -n || true
echo "one of them has ended; see $dir"
exit 1

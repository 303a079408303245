#!/bin/sh
# Outlives the process that started private servers, in a session of its own, and cleans up after it.
# Standard input is a pipe whose only write end the owner holds, so its end means: the owner closed it, or died in
# whatever way. Then everything it had started goes, and the scratch folder with it.
#   watch PID    PID leads a process group of ours      forget PID    it has ended
trap '' HUP INT TERM
folder=$1
pids=''
cd / || exit 1

while read -r verb pid; do
  case $verb in
    watch) pids="$pids $pid" ;;
    forget)
      kept=''
      for p in $pids; do [ "$p" = "$pid" ] || kept="$kept $p"; done
      pids=$kept
      ;;
  esac
done

# Why: servers put their children into groups of their own, but each of them lives in the scratch folder.
inhabitants() {
  ls -ld /proc/[0-9]*/cwd 2>/dev/null | awk -v folder="$folder" '
    { at = index($0, " -> "); where = substr($0, at + 4) }
    where == folder || index(where, folder "/") == 1 { match($0, /\/proc\/[0-9]+\//); print substr($0, RSTART + 6, RLENGTH - 7) }'
}
living() {
  for p in $pids $(inhabitants); do kill -0 "$p" 2>/dev/null && echo "$p"; done
}
send() {
  # Why -s: Debian's sh takes `kill -QUIT -- -1234` for a mistake.
  for p in $pids; do kill -s "$1" -- "-$p" 2>/dev/null; done
  for p in $(inhabitants); do kill -s "$1" "$p" 2>/dev/null; done
}

# SIGQUIT is the immediate stop of PostgreSQL (which frees its shared memory) and of the Erlang machine.
send QUIT
send CONT
turns=0
while [ -n "$(living)" ]; do
  turns=$((turns + 1))
  [ "$turns" -ge 40 ] && send KILL
  [ "$turns" -ge 100 ] && break
  sleep 0.05
done

# A postmaster that was killed leaves a System V segment; line 7 of its pid file has "key id".
shared=$(sed -n '7s/.*[[:space:]]\([0-9][0-9]*\)[[:space:]]*$/\1/p' "$folder/data/postmaster.pid" 2>/dev/null)
[ -n "$shared" ] && ipcrm -m "$shared" 2>/dev/null
# Something that is just dying may still write.
turns=0
until rm -rf -- "$folder"; do
  turns=$((turns + 1))
  [ "$turns" -ge 25 ] && break
  sleep 0.2
done

import { readdirSync } from 'node:fs';
import type { Metrics } from '../telemetry/metrics-registry.js';

const STARTED_AT_SECONDS = Math.round(Date.now() / 1000 - process.uptime());

/** Brings the metrics of the process itself up to date. */
export function showProcess(metrics: Metrics, version: string, eventLoopLagSeconds: number): void {
  const { user, system } = process.cpuUsage();
  metrics.set('waybill_build_info', { version }, 1);
  metrics.set('waybill_event_loop_lag_seconds', {}, eventLoopLagSeconds);
  metrics.total('process_cpu_seconds_total', {}, (user + system) / 1e6);
  metrics.set('process_resident_memory_bytes', {}, process.memoryUsage.rss());
  metrics.set('process_open_fds', {}, openFiles());
  metrics.set('process_start_time_seconds', {}, STARTED_AT_SECONDS);
}

function openFiles(): number | undefined {
  try {
    return readdirSync('/proc/self/fd').length;
  } catch {
    return undefined;
  }
}

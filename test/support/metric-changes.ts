import parsePrometheus from 'parse-prometheus-text-format';
import type { Admin } from './admin.js';

/** Which metrics were seen with two different values under the same labels. */
export class MetricChanges {
  readonly #values = new Map<string, string>();
  readonly changed = new Set<string>();

  /** Scrapes; an absent series counts as a value, because it may come and go. */
  async look(admin: Admin): Promise<void> {
    const families = parsePrometheus((await admin.get('/metrics')).body);
    const present = new Set<string>();
    for (const { name, metrics } of families) {
      for (const { labels = {}, value, buckets } of metrics) {
        const series = `${name}${JSON.stringify(labels)}`;
        present.add(series);
        this.#note(name, series, value ?? JSON.stringify(buckets));
      }
    }
    for (const series of this.#values.keys()) {
      if (!present.has(series)) this.#note(series.slice(0, series.indexOf('{')), series, 'absent');
    }
  }

  #note(name: string, series: string, value: string): void {
    const before = this.#values.get(series);
    if (before !== undefined && before !== value) this.changed.add(name);
    this.#values.set(series, value);
  }
}

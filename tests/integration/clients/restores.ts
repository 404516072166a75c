// A customer's TypeScript program with the types generated from the document: create, follow, restore, undo, delete.
import createClient from "openapi-fetch";
import type { components, paths } from "./schema.ts";

type Job = components["schemas"]["Job"];

const [url, token, serverId] = process.argv.slice(2) as [string, string, string];
const api = createClient<paths>({ baseUrl: url, headers: { Authorization: `Bearer ${token}` } });

async function ended(response: Response): Promise<Job> {
  const path = { job_id: response.headers.get("X-Job-Id") ?? "" };
  for (;;) {
    const { data, error } = await api.GET("/api/v1/jobs/{job_id}/", { params: { path } });
    if (error) throw new Error(`${error.code}: ${error.detail}`);
    if (data.state === "completed" || data.state === "failed") return data;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

const body = { server_id: Number(serverId), name: "from-typescript", description: "" };
const created = await api.POST("/api/v1/snapshots/", { body });
if (!created.data || !("message" in created.data)) throw new Error(JSON.stringify(created.error));
const create = await ended(created.response);
const path = { snapshot_id: created.data.id };

const refused = await api.POST("/api/v1/snapshots/", { body });
const shown = await api.GET("/api/v1/snapshots/{snapshot_id}/", { params: { path } });
const listed = await api.GET("/api/v1/snapshots/", { params: { query: { server_id: Number(serverId) } } });

const restored = await api.POST("/api/v1/snapshots/{snapshot_id}/restore/", { params: { path } });
const restore = await ended(restored.response);
const undone = await api.POST("/api/v1/restores/{job_id}/undo/", { params: { path: { job_id: restore.id } } });
const undo = await ended(undone.response);
const deleted = await api.DELETE("/api/v1/snapshots/{snapshot_id}/", { params: { path } });

console.log(
  JSON.stringify({
    jobs: [create, restore, undo].map((job) => `${job.kind} ${job.state}`),
    refused: refused.error?.code,
    status: shown.data?.status,
    count: listed.data?.count,
    deleted: deleted.response.status,
  }),
);

-- include: clock, records, conclude, starting
-- The beginning of a job.

-- Mark a job of the calling node as begun, in `job`, too. A job whose server has moved to another node is ended with
-- `ask.left`, and a job that had to start before now with `ask.late`.
-- Answers nil, or why the job must not run.
local function begin(ask, job_id, job)
  local server = read('server:' .. job.server)
  if server and server.node ~= ask.node then
    conclude(job_id, job, ask.left)
    return 'server_moved'
  end
  local start_by_ms = job.state == 'queued' and number(job.start_by_ms)
  if start_by_ms and now_ms() >= start_by_ms then
    conclude(job_id, job, ask.late)
    return 'job_over'
  end
  start_job(job_id, job, server and server.power)
  return nil
end

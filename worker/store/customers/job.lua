-- include: records, show
-- One job of an account.
-- Only reads.
-- ask: {id, account}
-- Answers {{field, value, ...}, {durations (see `durations_of`)}, {power, kind (see `state_of_server`)}}; nil if the
-- account has none with this ID.
local ask = cjson.decode(ARGV[1])
local job, flat = read_of(ask.account, 'job:' .. ask.id)
return job and {flat, durations_of(job), state_of_server(job.server, job.account)} or nil

import { mount } from 'svelte'
import './app.css'
import './print.css'
import App from './App.svelte'
import { watch } from './lib/hover'

watch()
const target = document.getElementById('app')
if (target) mount(App, { target })
